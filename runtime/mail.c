/*
 * Mail over MPI; see mail.h.
 *
 * Messages are found with a probe, since their lengths are not known, and received in the background. They are handed
 * out in the order in which they were found, which between two addresses is that in which they were sent; a long one
 * that is still coming holds up only what its sender sent later.
 */
#include "mail.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

/* A tag says which of the two on rank 0 sends, and to which. */
enum { TO_FRONT = 1, FROM_FRONT = 2, TAGS = 4 };

typedef struct letter letter;
struct letter {
    letter *next;
    int from, to; /* addresses */
    size_t bytes;
    MPI_Request request; /* MPI_REQUEST_NULL: complete */
    int failed;          /* MPI's code where it could not even be sent, which is for the next progress to say */
    unsigned char *data;
};

/* Oldest first. */
typedef struct letters {
    letter *first, **end;
} letters;

struct pen_mail {
    MPI_Comm comm;
    bool alone; /* one replica: all mail is local */
    int self, replicas, stages;
    bool *buried; /* [replicas] */
    letters outgoing, incoming;
};

pen_status pen_mail_create(pen_world *world, pen_mail **out) {
    pen_mail *mail = calloc(1, sizeof *mail);
    if (!mail) return pen_fail(PEN_NO_MEMORY, "no memory for the mail");
    mail->replicas = pen_world_replicas(world);
    mail->stages = pen_world_stages(world);
    mail->self = pen_world_replica(world);
    mail->alone = mail->replicas == 1;
    if (!mail->alone) mail->comm = MPI_Comm_f2c(pen_world_mail_handle(world));
    mail->outgoing.end = &mail->outgoing.first;
    mail->incoming.end = &mail->incoming.first;
    mail->buried = calloc((size_t)mail->replicas, sizeof *mail->buried);
    if (!mail->buried) {
        free(mail);
        return pen_fail(PEN_NO_MEMORY, "no memory for the mail");
    }
    *out = mail;
    return PEN_OK;
}

static void append(letters *list, letter *l) {
    l->next = NULL;
    *list->end = l;
    list->end = &l->next;
}

/* Takes the letter out that `link` points to. */
static letter *unlink_letter(letters *list, letter **link) {
    letter *l = *link;
    *link = l->next;
    if (!l->next) list->end = link;
    return l;
}

static void free_letter(letter *l) {
    free(l->data);
    free(l);
}

/* What is still on its way is abandoned, and its memory with it: MPI may yet touch that. */
static void drop_all(letters *list) {
    while (list->first) {
        letter *l = unlink_letter(list, &list->first);
        if (l->request == MPI_REQUEST_NULL)
            free_letter(l);
        else
            MPI_Request_free(&l->request);
    }
}

void pen_mail_destroy(pen_mail *mail) {
    if (!mail) return;
    drop_all(&mail->outgoing);
    drop_all(&mail->incoming);
    free(mail->buried);
    free(mail);
}

static int rank_of(const pen_mail *mail, int address) {
    return address == PEN_MAIL_FRONT ? 0 : address * mail->stages;
}

static bool is_silent(const pen_mail *mail, int address) {
    return address != PEN_MAIL_FRONT && mail->buried[address];
}

static letter *make_letter(int from, int to, size_t bytes) {
    letter *l = malloc(sizeof *l);
    unsigned char *data = malloc(bytes ? bytes : 1);
    if (!l || !data) {
        free(l);
        free(data);
        return NULL;
    }
    *l = (letter){.from = from, .to = to, .bytes = bytes, .request = MPI_REQUEST_NULL, .data = data};
    return l;
}

static pen_status lost(const pen_mail *mail, int address, int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(code, text, &length);
    return pen_fail(PEN_PEER_LOST, "lost rank %d (leader of replica %d): mail: %s", rank_of(mail, address),
                    address == PEN_MAIL_FRONT ? 0 : address, text);
}

pen_status pen_mail_send(pen_mail *mail, int from, int to, const void *message, size_t bytes) {
    if (is_silent(mail, to)) return PEN_OK;
    if (bytes > INT32_MAX) return pen_fail(PEN_USAGE, "a message of %zu bytes is too long", bytes);
    letter *l = make_letter(from, to, bytes);
    if (!l) return pen_fail(PEN_NO_MEMORY, "no memory for a message of %zu bytes", bytes);
    memcpy(l->data, message, bytes);
    if (rank_of(mail, to) == rank_of(mail, from)) {
        append(&mail->incoming, l);
        return PEN_OK;
    }
    int tag = (to == PEN_MAIL_FRONT ? TO_FRONT : 0) | (from == PEN_MAIL_FRONT ? FROM_FRONT : 0);
    l->failed = MPI_Isend(l->data, (int)bytes, MPI_BYTE, rank_of(mail, to), tag, mail->comm, &l->request);
    append(&mail->outgoing, l);
    return PEN_OK;
}

int pen_mail_unsent(const pen_mail *mail, int from, int to) {
    int count = 0;
    for (const letter *l = mail->outgoing.first; l; l = l->next) count += l->from == from && l->to == to;
    return count;
}

/* Begins to receive what has been announced. */
static pen_status find_incoming(pen_mail *mail, int *peer) {
    for (;;) {
        MPI_Message message;
        MPI_Status status;
        int found, bytes;
        int code = MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, mail->comm, &found, &message, &status);
        *peer = PEN_MAIL_FRONT; /* nobody's fault: this rank cannot go on */
        if (code != MPI_SUCCESS) return pen_fail(PEN_PEER_LOST, "MPI_Improbe failed with code %d", code);
        if (!found) return PEN_OK;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        int replica = status.MPI_SOURCE / mail->stages;
        letter *l = make_letter(status.MPI_TAG & FROM_FRONT ? PEN_MAIL_FRONT : replica,
                                status.MPI_TAG & TO_FRONT ? PEN_MAIL_FRONT : mail->self, (size_t)bytes);
        if (!l) return pen_fail(PEN_NO_MEMORY, "no memory for a message of %d bytes", bytes);
        code = MPI_Imrecv(l->data, bytes, MPI_BYTE, &message, &l->request);
        append(&mail->incoming, l);
        *peer = l->from;
        if (code != MPI_SUCCESS) return lost(mail, l->from, code);
    }
}

/* Whether the transfer is complete; with an error it will never be, and the peer is lost. */
static pen_status look_at(const pen_mail *mail, letter *l, int peer, bool *complete) {
    *complete = l->request == MPI_REQUEST_NULL;
    if (l->failed != MPI_SUCCESS) return lost(mail, peer, l->failed);
    if (*complete) return PEN_OK;
    int done = 0, code = MPI_Test(&l->request, &done, MPI_STATUS_IGNORE);
    *complete = done != 0;
    return code == MPI_SUCCESS ? PEN_OK : lost(mail, peer, code);
}

pen_status pen_mail_progress(pen_mail *mail, bool *moved, int *peer) {
    if (mail->alone) return PEN_OK;
    for (letter **link = &mail->outgoing.first; *link;) {
        bool complete;
        *peer = (*link)->to;
        PEN_TRY(look_at(mail, *link, *peer, &complete));
        if (complete)
            free_letter(unlink_letter(&mail->outgoing, link));
        else
            link = &(*link)->next;
    }
    PEN_TRY(find_incoming(mail, peer));
    for (letter *l = mail->incoming.first; l; l = l->next) {
        bool was_complete = l->request == MPI_REQUEST_NULL, complete;
        *peer = l->from;
        PEN_TRY(look_at(mail, l, *peer, &complete));
        *moved |= complete && !was_complete;
    }
    return PEN_OK;
}

/* Whether an earlier letter from the same sender is still coming. */
static bool is_overtaking(const pen_mail *mail, const letter *candidate) {
    for (const letter *l = mail->incoming.first; l != candidate; l = l->next)
        if (l->from == candidate->from && l->request != MPI_REQUEST_NULL) return true;
    return false;
}

bool pen_mail_receive(pen_mail *mail, int to, int *from, pen_blob *message) {
    for (letter **link = &mail->incoming.first; *link;) {
        letter *l = *link;
        bool complete = l->request == MPI_REQUEST_NULL;
        if (complete && is_silent(mail, l->from)) {
            free_letter(unlink_letter(&mail->incoming, link));
            continue;
        }
        if (l->to == to && complete && !is_overtaking(mail, l)) {
            unlink_letter(&mail->incoming, link);
            *from = l->from;
            *message = (pen_blob){l->data, l->bytes};
            free(l);
            return true;
        }
        link = &l->next;
    }
    return false;
}

void pen_mail_bury(pen_mail *mail, int replica) {
    mail->buried[replica] = true;
    letters *lists[] = {&mail->outgoing, &mail->incoming};
    for (int i = 0; i < 2; i++)
        for (letter **link = &lists[i]->first; *link;) {
            letter *l = *link;
            if ((i == 0 ? l->to : l->from) != replica) {
                link = &l->next;
                continue;
            }
            unlink_letter(lists[i], link);
            /* Of a transfer that will never end, the memory stays MPI's. */
            if (l->request == MPI_REQUEST_NULL)
                free_letter(l);
            else
                MPI_Request_free(&l->request);
        }
}

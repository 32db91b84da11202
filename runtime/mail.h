/*
 * Mail: messages of any length between rank 0's front end and the leaders of the replicas, and between leaders.
 * Never blocking, in order between any two. This is all that replicas know of each other during a run; a replica in
 * another job, or one that survives a failure, would only need another one of these.
 *
 * Addresses: replica numbers, and PEN_MAIL_FRONT. On rank 0 both the front end and the first leader live; what they
 * send each other does not leave the process. Only leaders may have mail.
 */
#ifndef PEN_MAIL_H
#define PEN_MAIL_H

#include "status.h"
#include "world.h"

typedef struct pen_mail pen_mail;

enum { PEN_MAIL_FRONT = -1 };

pen_status pen_mail_create(pen_world *world, pen_mail **mail);
void pen_mail_destroy(pen_mail *mail); /* what has not left yet is dropped */

/* Sends a copy. What goes to a buried replica is dropped. */
pen_status pen_mail_send(pen_mail *mail, int from, int to, const void *message, size_t bytes);
/* Messages from `from` to `to` that have not left. */
int pen_mail_unsent(const pen_mail *mail, int from, int to);
/* Takes the oldest message to `to` (an address of this rank); false: there is none. The caller frees its data. */
bool pen_mail_receive(pen_mail *mail, int to, int *from, pen_blob *message);
/* Moves messages on; *moved is set where any arrived, and otherwise left alone. PEN_PEER_LOST where one turns out to be
 * dead, whose address is then in *peer. */
pen_status pen_mail_progress(pen_mail *mail, bool *moved, int *peer);
/* From now on the replica is silent: nothing goes there, and what it sends is dropped. */
void pen_mail_bury(pen_mail *mail, int replica);

#endif

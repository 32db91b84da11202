/* Elementary functions with equal bits everywhere; see exact.h. Series on a reduced argument, summed from the small
 * end. */
#include "exact.h"

#include <math.h>

/* ln 2 and π/2 in parts whose first ones have few enough bits that k·part is exact for |k| < 2^20 (as in fdlibm). */
static const double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
static const double half_pi[] = {1.57079632673412561417e+00, 6.07710050630396597660e-11, 2.02226624871116645580e-21};

double pen_exact_exp(double x) {
    if (!(x > -700)) return x == x ? 0 : x;
    if (x > 700) return HUGE_VAL;
    double k = floor(x / 0.6931471805599453 + 0.5);
    double r = (x - k * ln2_high) - k * ln2_low; /* |r| ≤ 0.347 */
    double sum = 1;
    for (int i = 14; i >= 1; i--) sum = 1 + r / i * sum;
    return ldexp(sum, (int)k);
}

double pen_exact_log(double x) {
    int exponent;
    double m = frexp(x, &exponent);
    if (m < 0.7071067811865476) {
        m *= 2;
        exponent--;
    }
    double s = (m - 1) / (m + 1), z = s * s, sum = 0; /* ln m = 2·atanh s, |s| ≤ 0.172 */
    for (int i = 23; i >= 1; i -= 2) sum = sum * z + 1.0 / i;
    return exponent * ln2_high + (2 * s * sum + exponent * ln2_low);
}

void pen_exact_sincos(double x, double *sine, double *cosine) {
    double k = floor(x / 1.5707963267948966 + 0.5);
    double r = ((x - k * half_pi[0]) - k * half_pi[1]) - k * half_pi[2]; /* |r| ≤ 0.786 */
    double z = r * r, s = 1, c = 1;
    for (int i = 18; i >= 2; i -= 2) {
        s = 1 - z / (i * (i + 1)) * s;
        c = 1 - z / (i * (i - 1)) * c;
    }
    s *= r;
    switch ((long)k & 3) { /* the quarter turn */
    case 0: *sine = s, *cosine = c; return;
    case 1: *sine = c, *cosine = -s; return;
    case 2: *sine = -s, *cosine = -c; return;
    default: *sine = -c, *cosine = s; return;
    }
}

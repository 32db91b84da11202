/*
 * Elementary functions in double precision made of +, −, ×, ÷ alone: the same bits on every machine, which libm does
 * not promise. For tables and for a few values per row; accurate to about 1e-15 relative.
 */
#ifndef PEN_EXACT_H
#define PEN_EXACT_H

double pen_exact_exp(double x);
double pen_exact_log(double x);                                /* x > 0, normal */
void pen_exact_sincos(double x, double *sine, double *cosine); /* |x| < 1.6 million */

#endif

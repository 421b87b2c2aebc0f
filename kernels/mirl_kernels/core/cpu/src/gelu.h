// Included by vector.h. Phi(x) - 1/2 is odd: x * P(x^2) / Q(x^2), a rational fit of ours (weighted least
// squares, weights refined until the error levels) on |x| <= 5.6, where Phi is 1 to 1e-8. The fit's error in
// GELU is 6e-10; in float32 the result is within 2.3e-7 * max(1, |x|) of the exact one. Below -5.6 it is 0,
// not what the rounding of 0.5 leaves: the gate may multiply it by hundreds.
inline Vec normal_cumulative(Vec x) {
  const Vec c = vmax(vmin(x, all(5.6f)), all(-5.6f)), t = c * c;
  Vec p = all(-7.603792555e-11f);
  p = p * t + 5.306153196e-08f;
  p = p * t + 8.467795073e-06f;
  p = p * t + 1.692643901e-04f;
  p = p * t + 4.800708682e-03f;
  p = p * t + 3.260279993e-02f;
  p = p * t + 3.989422921e-01f;
  Vec q = all(2.006591390e-06f);
  q = q * t + 8.176616857e-05f;
  q = q * t + 1.929640416e-03f;
  q = q * t + 2.843158544e-02f;
  q = q * t + 2.483899354e-01f;
  q = q * t + 1.0f;
  return x > all(-5.6f) ? 0.5f + c * p * reciprocal(q) : all(0.0f);
}

inline Vec gelu(Vec x) { return x * normal_cumulative(x); }

// ---- The weight: rows of all experts, one after another ----

// Its tensors; formats without scales or biases are given any others in their place.
struct Weight {
  const unsigned char* words;
  const unsigned char* scales;
  const unsigned char* biases;
};

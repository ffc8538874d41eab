"""Models: loading, anatomy, tokens, caches. The only room that touches transformers' insides."""

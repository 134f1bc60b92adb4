"""What the paper does not have: tuned methods, loss against bytes, attacks, compressed and late syncs."""

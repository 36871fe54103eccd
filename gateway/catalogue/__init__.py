"""What models cost and how much they take in: published prices, and what the configuration says over them."""

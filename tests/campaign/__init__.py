"""The fault campaign: the whole graph struck at random, and made again by a plain run (`make campaign`)."""

"""Turn images into what a network reads, and its raw outputs into boxes and masks, without torch."""

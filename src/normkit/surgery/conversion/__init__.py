"""Parts of :func:`normkit.convert`: kinds of layers, their states, and what goes on around them."""

"""Operations of :mod:`normkit.core`, fast: calls, ways to compute them, and their choice."""

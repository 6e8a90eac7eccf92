"""The operations of :mod:`normkit.core`, fast: a contract, its backends, and the choice of one."""

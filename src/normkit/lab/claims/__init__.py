"""The claims of the lab, one file each; :mod:`normkit.lab.claims.registry` finds them."""

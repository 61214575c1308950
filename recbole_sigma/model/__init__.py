"""One file per model. `registry.find_model` finds them by name."""

from recbole_sigma import compat

compat.apply()  # before any model uses RecBole

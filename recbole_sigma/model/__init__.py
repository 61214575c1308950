"""One file a model. `registry.find_model` finds them by name."""

from recbole_sigma import compat

compat.apply()  # before anything here uses RecBole

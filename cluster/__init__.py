"""Many simulated ESX hosts: scenarios, placement, the epoch barrier over Ray actors, reports."""

__version__ = "0.1.0"

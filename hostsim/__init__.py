"""One simulated ESX host: the memory manager of Waldspurger (OSDI 2002), page by page.

Knows nothing of Ray, files or wall clocks. `hostsim.host.Host` is what everyone else uses.
"""

"""Everything that starts notebooks: one run, many runs, other machines, estimates before them."""

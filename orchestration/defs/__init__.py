"""Where `dg scaffold defs` puts assets of your own; they join the graph's definitions."""

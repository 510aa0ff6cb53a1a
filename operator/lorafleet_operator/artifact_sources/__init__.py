"""Where adapters come from: one file per URI scheme, behind one Protocol. Knows neither Kubernetes nor runtimes."""

"""Who goes next, and what it costs: admission orders, the virtual token counter first, and the counters behind them.

Read `vtc` for the algorithm, `counters` for how replicas share it, `fair_queue` for what is charged when.
"""

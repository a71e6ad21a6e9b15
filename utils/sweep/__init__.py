"""Every checkpoint of a family, measured once, by any number of processes. Start here, then read

1. `analysis.py`  what a script is: its config, its results, and its two functions
2. `runner.py`    from the command line to a run
3. `plan.py`      what is missing
4. `loop.py`      the run: claim, load, measure, save
5. `claims.py`    how processes share one results folder

`suite.py` makes one run of several scripts, `estimate.py` says what a run will need, and `ray_pool.py` (with
`worker.py`) and `slurm.py` spread it over a cluster.
"""

"""Search the settings of a cache on your own model: generate, compare with the uncached result, keep the Pareto front.

`cost.py` predicts work, `windows.py` lists candidates, `targets.py` generates, `store.py` keeps what is finished, and
`evaluator.py` runs candidates, alone or beside other ranks. One file a procedure: `blocks.py`, `attentions.py`, `knobs.py`.
The scripts of `search_scripts/` are the command line. Importing `mindie_cache` imports none of this.
"""

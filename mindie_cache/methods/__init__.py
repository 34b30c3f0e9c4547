"""The methods: typed options and a builder each, grouped by family. The table of names is `recipes.py`."""

"""Measurements side by side with peers: ``python -m benchmarks NAME`` runs a bench from a checkout.

Every bench is a module with a function ``run(data, docs, quick, progress)``:

- data: folder of the data sets.
- docs: folder for ``results/NAME.jsonl``, ``images/`` and the section of the bench in ``benchmarks.md``.
- quick: a short run on little data, to see that the bench works; it writes nothing.
- progress: callable of (stage, done, total), or None.

It returns what its tables show, as a dict that JSON can hold.
"""

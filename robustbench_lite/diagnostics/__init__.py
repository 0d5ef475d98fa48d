"""Red flags: signs that a defense looks more robust than it is, or that an attack failed for its own reasons.

``catalogue`` lists the checks. Those of stored results (``compare``, over ``runs``) are made whenever a table is built. Those
that look at the model (``subject``; ``gradients``, ``behaviour``, ``attacks``) are made by ``rbl run`` and ``rbl diagnose``
(``plan``, ``work``) and their verdicts stored beside the cells (``record``). ``indicators`` tells why one attack failed.
Importing this package, ``catalogue``, ``runs``, ``compare``, ``record`` and ``plan`` imports no torch.
"""

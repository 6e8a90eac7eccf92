"""The lab: test claims about normalization on real data.

A claim (:mod:`normkit.lab.claims`) plans runs (:mod:`normkit.lab.config`); runs are trained
(:mod:`normkit.lab.training`) by workers (:mod:`normkit.lab.executors`) that write to a store
(:mod:`normkit.lab.store`); the judge (:mod:`normkit.lab.judge`) makes findings of what the store
holds (:mod:`normkit.lab.findings`), and :mod:`normkit.report` draws them.
"""

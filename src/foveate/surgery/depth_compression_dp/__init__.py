"""Shallower networks: activations removed, and the convolutions between which they stood merged.

    chains       which convolutions stand in a row, and what between them
    tables       what each piece would take, and what each run would lose
    solve        the best choice for both tables
    Deactivate   an edit that makes the choice, and can be trained after
    MergeRuns    an edit that merges what was chosen

Source: depth_compression_dp (arXiv 2301.12187).
"""

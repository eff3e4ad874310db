"""Few bits for vision transformers, after training: `ShiftAndSmooth`, `SimulateTransformer`, and
`MixBits`, in this order.

Source: mptq_vit (arXiv 2401.14895). The authors published no code, and only the abstract and
summaries of the paper could be read. From there come: the transform (Y - mu) / eps of what layer
norms make, with mu the channel's mean, folded into the norm and the layers behind it; ratios of
scales between regions that data decides; and bits lowered greedily by performance and
compression. Where they are silent, each file says what was chosen.
"""

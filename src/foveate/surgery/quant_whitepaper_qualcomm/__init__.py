"""Quantisation after training and with it, as a toolbox whose parts follow one another:
`CrossLayerEqualise`, `Simulate`, `AdaRound`, `CorrectBias`, then `blame` if accuracy is lost.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295).
"""

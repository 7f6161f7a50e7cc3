"""Explanations of photographs as people look at them: contact sheets and the numbers behind them."""

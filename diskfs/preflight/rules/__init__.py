"""The rules: their data (`catalogue`), the checks of each area, and the engine that runs them over the facts."""

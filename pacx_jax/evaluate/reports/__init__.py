"""The HTML report of an evaluation. Needs the extra `report`; no module imports it."""

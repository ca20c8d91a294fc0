-- Experts with one number for each neuron of the model instead of its place.
-- Reads: experts(pooling, concept, layer, site, unit, ap).
WITH places AS (
    SELECT layer, site, row_number() OVER (ORDER BY layer, site) - 1 AS place
    FROM (SELECT DISTINCT layer, site FROM experts)
)
SELECT
    pooling, layer, site, concept,
    (place * (SELECT max(unit) + 1 FROM experts) + unit)::UINTEGER AS neuron,
    ap
FROM experts JOIN places USING (layer, site)

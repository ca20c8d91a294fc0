-- Experts with numbers instead of the concept's name and the neuron's place in the model.
-- Reads: experts(pooling, concept, layer, site, unit, ap), concepts(concept, number).
WITH places AS (
    SELECT layer, site, row_number() OVER (ORDER BY layer, site) - 1 AS place
    FROM (SELECT DISTINCT layer, site FROM experts)
)
SELECT
    pooling, layer, site, number,
    (place * (SELECT max(unit) + 1 FROM experts) + unit)::UINTEGER AS neuron,
    ap
FROM experts JOIN concepts USING (concept) JOIN places USING (layer, site)

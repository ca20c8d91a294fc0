-- The sites that have experts, by pooling and layer, with an offset such that `first_neuron + unit` numbers
-- the neurons.
-- Reads: experts(pooling, layer, site, unit).
SELECT
    pooling, layer, site,
    (sum(width) OVER (ORDER BY pooling, layer, site) - width)::UINTEGER AS first_neuron
FROM (SELECT pooling, layer, site, max(unit) + 1 AS width FROM experts GROUP BY ALL)

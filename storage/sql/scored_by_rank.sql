-- Neurons with their rank in the concept as strength, negative so that the best one is the strongest, in
-- the scopes of one kind: $scope is model, layer or site. Equal APs go by the neuron's number.
-- Reads: neurons (the result of neurons.sql).
WITH scoped AS (
    SELECT
        * REPLACE (
            CASE WHEN $scope = 'layer' THEN layer END AS layer,
            CASE WHEN $scope = 'site' THEN site END AS site
        )
    FROM neurons
)
SELECT
    pooling, layer, site, number, neuron,
    -row_number() OVER (
        PARTITION BY pooling, layer, site, number ORDER BY ap DESC, neuron
    )::DOUBLE AS strength
FROM scoped

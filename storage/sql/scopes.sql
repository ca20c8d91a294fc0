-- The scopes of kind $scope: the model, each layer, or each kind of site that has experts if there are
-- several; layer and site are null where a scope covers all of them. `pair_offset` leaves room for the
-- numbers of all pairs of concepts between two scopes.
-- Reads: sites (the result of sites.sql), concepts (of concept_numbers.sql), poolings(pooling).
SELECT
    pooling, layer, site,
    (row_number() OVER (ORDER BY pooling, layer, site) - 1)
        * (SELECT count(*) * (count(*) + 1) // 2 FROM concepts) AS pair_offset
FROM poolings CROSS JOIN (
    SELECT DISTINCT
        CASE WHEN $scope = 'layer' THEN layer END AS layer,
        CASE WHEN $scope = 'site' THEN site END AS site
    FROM sites
    WHERE $scope != 'site' OR (SELECT count(DISTINCT site) FROM sites) > 1
    UNION
    SELECT NULL, NULL WHERE $scope = 'model'
)

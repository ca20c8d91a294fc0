-- The scopes of one kind, $scope: the model, each layer or, where there are several, each kind of site
-- that has an expert; layer and site are null where a scope goes over all. `row` numbers them, with as
-- many numbers between two as there are pairs of concepts.
-- Reads: places (the result of places.sql), concepts (that of numbered.sql), poolings(pooling).
SELECT
    pooling, layer, site,
    (row_number() OVER (ORDER BY pooling, layer, site) - 1)
        * (SELECT count(*) * (count(*) + 1) // 2 FROM concepts) AS row
FROM poolings CROSS JOIN (
    SELECT DISTINCT
        CASE WHEN $scope = 'layer' THEN layer END AS layer,
        CASE WHEN $scope = 'site' THEN site END AS site
    FROM places
    WHERE $scope != 'site' OR (SELECT count(DISTINCT site) FROM places) > 1
    UNION
    SELECT NULL, NULL WHERE $scope = 'model'
)

-- Concepts numbered from 0 in the order of their names. `row + b.number` numbers the pairs of a concept with
-- itself or a later one, b: from 0, without a gap.
-- Reads: names(concept).
SELECT concept, number::USMALLINT AS number, number * n - number * (number + 1) // 2 AS row
FROM (
    SELECT concept, row_number() OVER (ORDER BY concept) - 1 AS number, count(*) OVER () AS n FROM names
)

-- Concepts numbered from 0 in the order of their names. `pair_offset + b.number` numbers the pairs of a
-- concept with itself or a later concept b, from 0 and without gaps.
-- Reads: names(concept).
SELECT concept, number::USMALLINT AS number, number * n - number * (number + 1) // 2 AS pair_offset
FROM (
    SELECT concept, row_number() OVER (ORDER BY concept) - 1 AS number, count(*) OVER () AS n FROM names
)

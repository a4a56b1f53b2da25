lh_test(test_shard LINK lh_parallel)
lh_test(test_comm RANKS 1 2 3 4 LINK lh_parallel)
lh_test(test_expert RANKS 1 2 3 4 5 8 LINK lh_parallel)

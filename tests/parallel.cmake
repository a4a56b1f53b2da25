lh_test(test_shard LINK lh_parallel)

lh_test(test_opts)

lh_test(test_base)

lh_test(test_tokenizer LINK lh_runtime lh::jansson)
lh_test(test_sampler LINK lh_runtime)

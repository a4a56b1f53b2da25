lh_test(test_sha256)
lh_test(test_maps)
lh_test(test_config LINK lh_runtime lh::jansson)
lh_test(test_safetensors LINK lh_runtime)

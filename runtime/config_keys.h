/*
 * The keys of config.json that do not matter to what the runtime computes.
 */
#ifndef LH_RUNTIME_CONFIG_KEYS_H
#define LH_RUNTIME_CONFIG_KEYS_H

#ifdef __cplusplus
extern "C" {
#endif

/* Whether a key of the outermost object is one of those. */
int lh_config_key_harmless(const char *key);

#ifdef __cplusplus
}
#endif
#endif

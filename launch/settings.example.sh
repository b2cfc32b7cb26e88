# shellcheck shell=bash disable=SC2034
# Settings of launch/tpu_*.sh. Copy this file to launch/settings.sh, which git ignores, and edit that:
#   cp launch/settings.example.sh launch/settings.sh

# The Google Cloud project that pays: its ID, as `gcloud projects list` shows it.
PROJECT=my-project

# Where the TPU stands. Each type is in some zones only: https://cloud.google.com/tpu/docs/regions-zones
ZONE=us-central1-a

# What the TPU, and the request for it, is called: small letters, digits and hyphens.
TPU_NAME=erc-jax

# Type and number of chips. Up to 8 chips of v5litepod (v5e) or v6e are one machine; more are a pod of
# several, and all are used. Start with the smallest that your quota allows.
ACCELERATOR_TYPE=v5litepod-8

# The image of the machines, by the type: v2-alpha-tpuv5-lite for v5litepod, v2-alpha-tpuv5 for v5p,
# v2-alpha-tpuv6e for v6e, tpu-ubuntu2204-base for v4 and older. https://cloud.google.com/tpu/docs/runtimes
RUNTIME_VERSION=v2-alpha-tpuv5-lite

# yes: a spot TPU, which costs much less and can be taken away at any time (launch/tpu_resume.sh asks
# for another one and goes on). no: an on-demand TPU.
SPOT=yes

# Where runs are kept; it outlives the TPU. All workers see it as /mnt/erc_jax. Either a bucket, which
# launch/setup_project.sh makes (names are unique in the whole world), or a folder that a file server
# in the same network exports, such as Filestore: 10.0.0.2:/share
STORE=gs://my-project-erc-jax

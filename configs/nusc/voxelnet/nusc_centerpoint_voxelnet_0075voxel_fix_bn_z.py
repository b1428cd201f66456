"""CenterPoint on nuScenes with voxels of 0.075 m: the reference detector (59.6 mAP, 66.8 NDS).

In the dialect of CenterPoint's own configs: interpreted by voxelquant, never executed. The same
detector as the bundled `centerpoint_voxel0075`; a test holds them together.
"""

import itertools

from det3d.utils.config_tool import get_downsample_factor

tasks = [
    dict(num_class=1, class_names=["car"]),
    dict(num_class=2, class_names=["truck", "construction_vehicle"]),
    dict(num_class=2, class_names=["bus", "trailer"]),
    dict(num_class=1, class_names=["barrier"]),
    dict(num_class=2, class_names=["motorcycle", "bicycle"]),
    dict(num_class=2, class_names=["pedestrian", "traffic_cone"]),
]
class_names = list(itertools.chain(*[task["class_names"] for task in tasks]))

# Geometry.
point_range = [-54, -54, -5.0, 54, 54, 3.0]  # m: x, y, z minimum, then maximum
voxel_size = [0.075, 0.075, 0.2]  # m: x, y, z
voxel_generator = dict(
    range=point_range,
    voxel_size=voxel_size,
    max_points_in_voxel=10,
    max_voxel_num=[120000, 160000],  # training, inference
)

# Network.
model = dict(
    type="VoxelNet",
    reader=dict(type="VoxelFeatureExtractorV3", num_input_features=5),
    backbone=dict(type="SpMiddleResNetFHD", num_input_features=5, ds_factor=8),
    neck=dict(
        type="RPN",
        num_input_features=256,
        layer_nums=[5, 5],
        ds_layer_strides=[1, 2],
        ds_num_filters=[128, 256],
        us_layer_strides=[1, 2],
        us_num_filters=[256, 256],
    ),
    bbox_head=dict(
        type="CenterHead",
        in_channels=sum([256, 256]),
        tasks=tasks,
        dataset="nuscenes",
        weight=0.25,
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2, 1.0, 1.0],
        # name: (output channels, convolutions)
        common_heads={"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)},
        share_conv_channel=64,
        dcn_head=False,
    ),
)
out_size_factor = get_downsample_factor(model)

# Targets and decoding.
assigner = dict(
    target_assigner=dict(tasks=tasks),
    out_size_factor=out_size_factor,
    gaussian_overlap=0.1,
    max_objs=500,
    min_radius=2,
)
test_cfg = dict(
    post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
    nms=dict(nms_pre_max_size=1000, nms_post_max_size=83, nms_iou_threshold=0.2),
    score_threshold=0.1,
    pc_range=point_range[:2],
    out_size_factor=out_size_factor,
    voxel_size=voxel_size[:2],
)

# Data. Info files are read where they exist, nuScenes' own tables where they do not.
dataset_type = "NuScenesDataset"
data_root = "data/nuScenes"
nsweeps = 10
data = dict(
    samples_per_gpu=4,
    train=dict(
        type=dataset_type,
        root_path=data_root,
        info_path="{}/infos_train_10sweeps_withvelo_filter_True.pkl".format(data_root),
        nsweeps=nsweeps,
    ),
    val=dict(
        type=dataset_type,
        root_path=data_root,
        info_path="{}/infos_val_10sweeps_withvelo_filter_True.pkl".format(data_root),
        nsweeps=nsweeps,
    ),
    test=dict(type=dataset_type, root_path=data_root, info_path=None, nsweeps=nsweeps),
)

# Augmentation. `sample_groups`: each frame is filled up to so many objects of a class.
db_sampler = dict(
    type="GT-AUG",
    db_info_path="{}/dbinfos_train_10sweeps_withvelo.pkl".format(data_root),
    sample_groups=[
        dict(car=2),
        dict(truck=3),
        dict(construction_vehicle=7),
        dict(bus=4),
        dict(trailer=6),
        dict(barrier=2),
        dict(motorcycle=6),
        dict(bicycle=6),
        dict(pedestrian=2),
        dict(traffic_cone=2),
    ],
    db_prep_steps=[
        dict(
            filter_by_min_num_points=dict(
                car=5,
                truck=5,
                construction_vehicle=5,
                bus=5,
                trailer=5,
                barrier=5,
                motorcycle=5,
                bicycle=5,
                pedestrian=5,
                traffic_cone=5,
            )
        ),
        dict(filter_by_difficulty=[-1]),
    ],
    global_random_rotation_range_per_object=[0, 0],
    rate=1.0,
)
train_preprocessor = dict(
    mode="train",
    shuffle_points=True,
    global_rot_noise=[-0.78539816, 0.78539816],
    global_scale_noise=[0.9, 1.1],
    global_translate_std=0.5,
    db_sampler=db_sampler,
    class_names=class_names,
)

# Schedule of training from scratch; quantization-aware training takes lr_max = 0.0001.
optimizer = dict(type="adam", amsgrad=0.0, wd=0.01, fixed_wd=True, moving_average=False)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(type="one_cycle", lr_max=0.001, moms=[0.95, 0.85], div_factor=10.0, pct_start=0.4)
total_epochs = 20

extern "C" __global__ void @cluster__launch_bounds__(@bounds)
    @name(const __grid_constant__ TensorMap q_map,
          const __grid_constant__ TensorMap k_map,
          const __grid_constant__ TensorMap v_map,
          const __grid_constant__ TensorMap,
          const void*, const void*, const void*, Element* __restrict__ o,@buffers
          float* __restrict__ lse, const __grid_constant__ Parameters parameters) {
  Launch launch = read_launch(parameters);@launch
  take_job<@width>(launch, &q_map, &k_map, &v_map, o, lse);
}

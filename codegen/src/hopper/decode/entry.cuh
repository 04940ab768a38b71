extern "C" __global__ void @cluster__launch_bounds__(@bounds)
    @name(@arguments) {
  Launch launch = read_launch(parameters);@launch
  apply_lag(launch, parameters);
  take_job<@width>(launch, &q_map, &k_map, &v_map, o, lse, @partials);
}

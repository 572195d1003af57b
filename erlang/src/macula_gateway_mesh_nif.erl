%%% @private
%%% Loads the native library and stands for its functions. No logic here: what a function does and
%%% which message it posts is written at its definition, in native/nif/src/nifs.rs.
-module(macula_gateway_mesh_nif).

-export([
    pool_open/1,
    pool_checkout/2,
    pool_connect/4,
    pool_send/4,
    pool_remove/2,
    pool_info/2,
    pool_list/1,
    pool_stats/1,
    pool_size/1,
    pool_set_limit/2,
    pool_close/2,
    stream_send/2,
    stream_send_wait/3,
    stream_async_send/2,
    handle_close/1,
    handle_peername/1,
    connection_open_stream/2
]).

-export_type([pool/0, stream/0, connection/0]).

-on_load(load/0).

-define(LIBRARY, "macula_gateway_mesh_nif").

-opaque pool() :: reference().
-opaque stream() :: reference().
-opaque connection() :: reference().

-spec load() -> ok | {error, {atom(), string()}}.
load() ->
    erlang:load_nif(filename:join(priv_dir(), ?LIBRARY), 0).

%% The application's own priv folder; beside the code when the application is not on the path.
-spec priv_dir() -> file:filename_all().
priv_dir() ->
    case code:priv_dir(macula_gateway_mesh) of
        {error, bad_name} ->
            Ebin = filename:dirname(code:which(?MODULE)),
            filename:join(filename:dirname(Ebin), "priv");
        Dir ->
            Dir
    end.

-spec pool_open(map()) -> {ok, pool()} | {error, term()}.
pool_open(_Options) -> erlang:nif_error(not_loaded).

-spec pool_checkout(pool(), binary()) -> {ok, stream()} | miss.
pool_checkout(_Pool, _NodeId) -> erlang:nif_error(not_loaded).

-spec pool_connect(pool(), binary(), term(), term()) -> ok | {error, term()}.
pool_connect(_Pool, _NodeId, _Address, _Token) -> erlang:nif_error(not_loaded).

-spec pool_send(pool(), binary(), term(), binary()) -> ok.
pool_send(_Pool, _NodeId, _Address, _Message) -> erlang:nif_error(not_loaded).

-spec pool_remove(pool(), binary()) -> boolean().
pool_remove(_Pool, _NodeId) -> erlang:nif_error(not_loaded).

-spec pool_info(pool(), binary()) -> {ok, map()} | not_found.
pool_info(_Pool, _NodeId) -> erlang:nif_error(not_loaded).

-spec pool_list(pool()) -> [{binary(), map()}].
pool_list(_Pool) -> erlang:nif_error(not_loaded).

-spec pool_stats(pool()) -> map().
pool_stats(_Pool) -> erlang:nif_error(not_loaded).

-spec pool_size(pool()) -> non_neg_integer().
pool_size(_Pool) -> erlang:nif_error(not_loaded).

-spec pool_set_limit(pool(), term()) -> ok | {error, {bad_option, max_mesh_connections, term()}}.
pool_set_limit(_Pool, _Limit) -> erlang:nif_error(not_loaded).

-spec pool_close(pool(), term()) -> ok.
pool_close(_Pool, _Token) -> erlang:nif_error(not_loaded).

-spec stream_send(stream(), binary()) -> ok | {error, term()} | wait.
stream_send(_Stream, _Data) -> erlang:nif_error(not_loaded).

-spec stream_send_wait(stream(), binary(), term()) -> ok | {error, term()} | wait.
stream_send_wait(_Stream, _Data, _Token) -> erlang:nif_error(not_loaded).

-spec stream_async_send(stream(), binary()) -> ok | {error, term()}.
stream_async_send(_Stream, _Data) -> erlang:nif_error(not_loaded).

-spec handle_close(stream() | connection()) -> ok.
handle_close(_Handle) -> erlang:nif_error(not_loaded).

-spec handle_peername(stream() | connection()) ->
    {ok, {inet:ip_address(), inet:port_number()}}.
handle_peername(_Handle) -> erlang:nif_error(not_loaded).

-spec connection_open_stream(connection(), term()) -> ok.
connection_open_stream(_Connection, _Token) -> erlang:nif_error(not_loaded).
